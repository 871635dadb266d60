"""Whether runs get on."""

from monitoring.grafana import RUN, Dashboard, Panel

OVERVIEW = Dashboard(
    "perennial-overview",
    "perennial: runs",
    "Does it get on, how far is it, is anything wrong?",
    (
        Panel(
            "Phases done",
            "percentunit",
            "Share of the run's phases that are finished.",
            {"{{run}}": f"perennial_phases_done{{{RUN}}} / perennial_phases{{{RUN}}}"},
            "stat",
        ),
        Panel(
            "Last sign of progress",
            "s",
            "Time since a rank turned to something else, or a unit or a phase was done.",
            {"{{run}}": f"perennial:progress:age_seconds{{{RUN}}}"},
            "stat",
            "PerennialRunStalled",
        ),
        Panel(
            "Alerts firing",
            "short",
            "Of all rules in monitoring/rules.",
            {"firing": 'count(ALERTS{alertname=~"Perennial.+",alertstate="firing"}) or vector(0)'},
            "stat",
        ),
        Panel(
            "Drivers answering",
            "short",
            "1 while the driver can be scraped; 0 when it ended before its run was finished.",
            {"{{run}}": f'up{{job="driver",{RUN}}}'},
            "stat",
            "PerennialDriverLost",
        ),
        Panel(
            "Phase at work",
            "short",
            "Kind, method, seed and learning step of what runs.",
            {
                "{{run}}: {{method}} seed {{seed}} step {{step}} {{kind}}": (
                    f"perennial_phase{{{RUN}}}"
                )
            },
            "state-timeline",
        ),
        Panel(
            "Loss",
            "none",
            "Weighted sum of the terms, as rank 0 sees it.",
            {"{{run}}": f'perennial_loss{{rank="0",{RUN}}}'},
            alert="PerennialLossSpike",
        ),
        Panel(
            "Images trained on",
            "short",
            "A second, over the whole group.",
            {"{{run}}": f"perennial:images:rate5m{{{RUN}}}"},
        ),
        Panel(
            "Room on the disk",
            "percentunit",
            "Of the run folder.",
            {"{{run}}": f"perennial:disk:free_share{{{RUN}}}"},
            alert="PerennialDiskNearlyFull",
        ),
    ),
)

"""Whether runs get on."""

from monitoring.grafana import RUN, Dashboard, Panel, latest

OVERVIEW = Dashboard(
    "perennial-overview",
    "perennial: runs",
    "Does it get on, how far is it, is anything wrong?",
    (
        Panel(
            title="Phases done",
            unit="percentunit",
            description="Share of the run's phases that are finished.",
            queries={
                "{{run}}": f"{latest('perennial_phases_done')} / {latest('perennial_phases')}"
            },
            kind="stat",
        ),
        Panel(
            title="Time left",
            unit="s",
            description="Of the phase at work, and of the training of the whole run, at the rate "
            "so far.",
            queries={"{{run}} {{of}}": f"perennial_remaining_seconds{{{RUN}}}"},
            kind="stat",
        ),
        Panel(
            title="Last sign of progress",
            unit="s",
            description="Time since a rank turned to something else, or a unit or a phase was "
            "done.",
            queries={"{{run}}": f"perennial:progress:age_seconds{{{RUN}}}"},
            kind="stat",
            alert="PerennialRunStalled",
            at_most=900,
        ),
        Panel(
            title="Alerts firing",
            unit="short",
            description="Of all rules in monitoring/rules.",
            queries={
                "firing": 'count(ALERTS{alertname=~"Perennial.+",alertstate="firing"}) or vector(0)'
            },
            kind="stat",
        ),
        Panel(
            title="Drivers answering",
            unit="short",
            description="1 while the driver can be scraped; 0 when it ended before its run was "
            "finished.",
            queries={"{{run}}": f'up{{job="driver",{RUN}}}'},
            kind="stat",
            alert="PerennialDriverLost",
            states=((1, "runs", "green"), (0, "gone", "red")),
        ),
        Panel(
            title="Phase at work",
            unit="short",
            description="Kind, method, seed and learning step of what runs.",
            queries={
                "{{run}}: {{method}} seed {{seed}} step {{step}} {{kind}}": (
                    f"perennial_phase{{{RUN}}}"
                )
            },
            kind="state-timeline",
        ),
        Panel(
            "Loss",
            "none",
            "Weighted sum of the terms, mean over ranks.",
            {"{{run}}": f"avg by (run) (perennial_loss{{{RUN}}})"},
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
            at_least=0.1,
        ),
    ),
)

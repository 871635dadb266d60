"""The old model's work, and the classifier."""

from monitoring.grafana import RUN, Dashboard, Panel, spread

NEIGHBOURS = Dashboard(
    "perennial-neighbours",
    "perennial: classifier and neighbourhoods",
    "The old model's work on the CPU, and the time that the classifier takes.",
    (
        Panel(
            "Images embedded by the CPU actors",
            "short",
            "A second: neighbourhoods, prototypes and evaluation.",
            {
                "{{run}} actor {{actor}}": "sum by (run, actor) "
                f'(rate(perennial_embedded_images_total{{job="actor",{RUN}}}[$__rate_interval]))'
            },
        ),
        Panel(
            "Images embedded in all",
            "short",
            "Since each actor started.",
            {"{{run}}": f'sum by (run) (perennial_embedded_images_total{{job="actor",{RUN}}})'},
        ),
        Panel(
            "Time in the classifier",
            "percentunit",
            "Share of a rank's time in the terms of the loss (on a GPU: in launching them).",
            spread(
                "sum by (run, rank) "
                f'(rate(perennial_doing_seconds_total{{doing="loss",{RUN}}}[$__rate_interval]))'
            ),
        ),
        Panel(
            "Time in looking up neighbourhoods",
            "percentunit",
            "Share of a rank's time at what the old model said.",
            spread(
                "sum by (run, rank) "
                f'(rate(perennial_doing_seconds_total{{doing="teacher",{RUN}}}[$__rate_interval]))'
            ),
        ),
    ),
)

"""One training phase from near."""

from monitoring.grafana import RUN, Dashboard, Panel, spread

LOSS = Dashboard(
    "perennial-loss",
    "perennial: step and loss",
    "One training phase from near.",
    (
        Panel(
            "Loss",
            "none",
            "Weighted sum of the terms. Ranks agree; where they do not, something is wrong.",
            spread(f"perennial_loss{{{RUN}}}"),
            alert="PerennialNonFinite",
        ),
        Panel(
            "Terms of the loss",
            "none",
            "Before their weights, mean over ranks.",
            {"{{run}} {{term}}": f"avg by (run, term) (perennial_loss_term{{{RUN}}})"},
        ),
        Panel(
            "Learning rate",
            "none",
            "Of the newest iteration.",
            {"{{run}}": f"max by (run) (perennial_learning_rate{{{RUN}}})"},
        ),
        Panel(
            "Learning step",
            "short",
            "The learning step at work.",
            {"{{run}}": f"max by (run) (perennial_learning_step{{{RUN}}})"},
        ),
        Panel(
            "Optimiser updates",
            "short",
            "A second.",
            {
                "{{run}}": "max by (run) "
                f"(rate(perennial_iterations_total{{{RUN}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Duration of an iteration",
            "s",
            "Mean over five minutes.",
            spread(f"perennial:iteration_seconds:mean5m{{{RUN}}}"),
        ),
        Panel(
            "Skipped updates",
            "short",
            "By reason: a loss or gradient that is not finite, a spike, a float16 overflow. "
            "Overflows now and then are how the loss scale is found.",
            {
                "{{run}} {{reason}}": "max by (run, reason) "
                f"(perennial_skipped_updates_total{{{RUN}}})"
            },
            alert="PerennialNonFinite",
        ),
        Panel(
            "Rewinds and restarts",
            "short",
            "Times that the phase went back to a checkpoint, and that its workers were restarted.",
            {
                "{{run}} rewinds": f"max by (run) (perennial_rewinds_total{{{RUN}}})",
                "{{run}} restarts": f"max by (run) (perennial_restarts_total{{{RUN}}})",
            },
            alert="PerennialRewound",
        ),
        Panel(
            "Loss scale",
            "short",
            "Multiplier of float16 gradients; 0 at other precisions.",
            {"{{run}}": f"max by (run) (perennial_loss_scale{{{RUN}}})"},
        ),
        Panel(
            "Age of the newest checkpoint",
            "s",
            "What a crash now would lose.",
            {"{{run}}": f"perennial:checkpoint:age_seconds{{{RUN}}}"},
            alert="PerennialCheckpointTooOld",
            at_most=3600,
        ),
    ),
)

"""What the models reach."""

from monitoring.grafana import RUN, Dashboard, Panel, latest

ACCURACY = Dashboard(
    "perennial-accuracy",
    "perennial: accuracy over learning steps",
    "What the models reach, step by step.",
    (
        Panel(
            title="Accuracy by learning step",
            unit="percentunit",
            description="top-1 on identities never seen in training.",
            queries={
                "{{method}} seed {{seed}} step {{step}}": "sort("
                + latest("perennial_accuracy_ratio", 'measure="top1",')
                + ")"
            },
            kind="bargauge",
            alert="PerennialAccuracyRegression",
        ),
        Panel(
            "Mean over seeds",
            "percentunit",
            "Every measure at the steps evaluated so far.",
            {
                "{{method}} step {{step}} {{measure}}": "avg by (method, step, measure) "
                f"(perennial_accuracy_ratio{{{RUN}}})"
            },
        ),
        Panel(
            "Change against the step before",
            "percentunit",
            "Of the newest step. Falling on step 0's identities (seen_top1) is forgetting.",
            {"{{method}} seed {{seed}} {{measure}}": (f"perennial_accuracy_change_ratio{{{RUN}}}")},
            alert="PerennialAccuracyRegression",
        ),
        Panel(
            title="Compatible with stored vectors",
            unit="short",
            description="1 where the newest model compared meets the criterion.",
            queries={"{{method}} seed {{seed}}": latest("perennial_compatible")},
            kind="stat",
            alert="PerennialIncompatible",
            states=((1, "holds", "green"), (0, "does not hold", "red")),
        ),
    ),
)

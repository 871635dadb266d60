"""From shards to batches."""

from monitoring.grafana import RUN, Dashboard, Panel, spread

DATA = Dashboard(
    "perennial-data",
    "perennial: data path",
    "From shards to batches.",
    (
        Panel(
            "Time waited for input",
            "percentunit",
            "Share of a rank's time, over five minutes. Above 30 % the input is the bottleneck.",
            spread(f"perennial:data_wait:share5m{{{RUN}}}"),
            alert="PerennialInputStarvation",
            at_most=0.3,
        ),
        Panel(
            "Damaged samples",
            "short",
            "Replaced by the next in order, and listed in the step's quarantine.jsonl.",
            {
                "{{run}} rank {{rank}}": (
                    f'perennial_quarantined_samples_total{{job="trainer",{RUN}}}'
                )
            },
            alert="PerennialQuarantineBudget",
        ),
        Panel(
            "Share of the budget of damaged samples",
            "percentunit",
            "At 100 % the phase ends with an error.",
            {"{{run}}": f"perennial:quarantine:budget_share{{{RUN}}}"},
            alert="PerennialQuarantineBudget",
            at_most=0.5,
        ),
        Panel(
            "Cache of remote shards",
            "ops",
            "Shards a second: found, fetched, deleted for others. All 0 for a local dataset.",
            {
                f"{{{{run}}}} {what}": f"sum by (run) "
                f"(rate(perennial_cache_{what}_total{{{RUN}}}[$__rate_interval]))"
                for what in ("hits", "misses", "evictions")
            },
        ),
        Panel(
            "Fetches gone wrong",
            "short",
            "Tried again after a failure, or thrown away because the sha256 differed.",
            {
                f"{{{{run}}}} {what}": f"sum by (run) (perennial_cache_{what}_total{{{RUN}}})"
                for what in ("retries", "mismatches")
            },
        ),
        Panel(
            "Fetched",
            "Bps",
            "Bytes of whole shards a second.",
            {
                "{{run}}": "sum by (run) "
                f"(rate(perennial_cache_downloaded_bytes_total{{{RUN}}}[$__rate_interval]))"
            },
        ),
    ),
)

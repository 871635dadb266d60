"""Machines, ranks and stragglers."""

from monitoring.grafana import RUN, Dashboard, Panel, spread

CLUSTER = Dashboard(
    "perennial-cluster",
    "perennial: cluster and stragglers",
    "Who is there, and who holds the others up.",
    (
        Panel(
            "Ranks",
            "short",
            "Heard of within five seconds, and how many there should be (0 outside training).",
            {
                "{{run}} heard": f"perennial_ranks_heard{{{RUN}}}",
                "{{run}} expected": f"perennial_ranks_expected{{{RUN}}}",
            },
            alert="PerennialRankMissing",
        ),
        Panel(
            "Work of its own",
            "percentunit",
            "Share of a rank's time in reading input, teacher and forward: where one rank stands "
            "out, the others wait for it.",
            spread(f"perennial:own_work:share5m{{{RUN}}}"),
            alert="PerennialStraggler",
        ),
        Panel(
            "What ranks do",
            "percentunit",
            "Share of time, mean over ranks.",
            {
                "{{run}} {{doing}}": "avg by (run, doing) "
                f"(rate(perennial_doing_seconds_total{{{RUN}}}[$__rate_interval]))"
            },
        ),
        Panel(
            "Cores used",
            "short",
            "CPU seconds a second of a process.",
            spread(
                f"rate(process_cpu_seconds_total{{{RUN}}}[$__rate_interval])",
                "run, job",
                "{{rank}}{{actor}}",
            ),
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident, of a process.",
            spread(
                f"process_resident_memory_bytes{{{RUN}}}",
                "run, job",
                "{{rank}}{{actor}}",
            ),
        ),
        Panel(
            "Pauses to save",
            "percentunit",
            "Share of time that training stood still for checkpoints.",
            spread(
                "sum by (run, rank) "
                f"(rate(perennial_checkpoint_pause_seconds_total{{{RUN}}}[$__rate_interval]))"
            ),
        ),
        Panel(
            "GPU utilisation",
            "percent",
            "From NVIDIA's DCGM exporter, where it runs.",
            {"{{Hostname}} GPU {{gpu}}": "DCGM_FI_DEV_GPU_UTIL"},
            alert="PerennialGpuErrors",
        ),
        Panel(
            "GPU errors",
            "short",
            "The newest Xid of each GPU, and its uncorrectable memory errors.",
            {
                "{{Hostname}} GPU {{gpu}} Xid": "DCGM_FI_DEV_XID_ERRORS",
                "{{Hostname}} GPU {{gpu}} memory": "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
            },
            alert="PerennialGpuErrors",
        ),
    ),
)

"""Metrics of an ArmoRM run that never took place, with every section."""

import numpy as np

SCORERS = {
    "gate": 0.642,
    "uniform": 0.526,
    "best_single": 0.532,
    "best_fixed": 0.578,
    "best_fixed_per_source": 0.671,
    "linear": 0.605,
    "linear_bt": 0.632,
    "mlp": 0.668,
    "gate_mean": 0.581,
    "gate_source_mean": 0.634,
}

ATTRIBUTES = ("coherence", "relevance", "semantically_appropriate", "arithmetic_ok", "overall")


def pair_numbers(value, n):
    return {
        "accuracy": value + 0.02,
        "ci95": [value - 0.03, value + 0.05],
        "accuracy_length_balanced": value,
        "ci95_length_balanced": [value - 0.031, value + 0.031],
        "accuracy_chosen_longer": value + 0.1,
        "accuracy_chosen_shorter": value - 0.1,
        "ties": 0.004,
        "log_loss": 0.69 - (value - 0.5) / 2,
        "ece": 0.0312,
        "ece_floor": 0.0243,
        "n": float(n),
        "missing": 0.0,
        "equal_length": 1.0,
    }


def pair_section(rng, sources):
    section = {}
    for name, value in SCORERS.items():
        each = {s: pair_numbers(value + rng.normal() * 0.07, 130) for s in sources}
        macro = pair_numbers(value, 130 * len(sources)) | {
            "ci95_length_balanced": [value - 0.012, value + 0.012]
        }
        del macro["ci95"]
        pooled = pair_numbers(value, 130 * len(sources))
        section[name] = {**pooled, "macro": macro, "per_source": each}
    return section


def objective_section(rng, names):
    return {
        name: {
            "n": float(rng.integers(30, 4000)),
            "spearman": float(rho := rng.uniform(0.05, 0.7)),
            "spearman_ci95": [rho - 0.06, rho + 0.06],
            "pearson": rho,
            "r2": rho**2 - 0.05,
            "length_spearman": rng.uniform(-0.3, 0.5),
            "prompt_spearman": rng.uniform(0, 0.4),
            "signal": bool(i % 4),
        }
        for i, name in enumerate(names)
    }


def debias_section(rng, names):
    before = {name: float(rng.uniform(-0.7, 0.7)) for name in names}
    return {
        "max_abs_spearman_before": 0.687,
        "max_abs_spearman_after": 0.0113,
        "before": before,
        "after": {name: float(rng.uniform(-0.01, 0.01)) for name in names},
        "heldout": {
            "max_abs_spearman": 0.0924,
            "max_abs_spearman_before": 0.5873,
            "before": {name: 0.9 * value for name, value in before.items()},
            "noise": 0.0481,
            "after": {name: float(rng.uniform(-0.09, 0.09)) for name in names},
        },
        "within_source": dict.fromkeys(names, 0.1),
        "within_pair": dict.fromkeys(names, 0.1),
        "score": {"before": 0.263, "after": 0.0157},
        "accuracy": {
            "gate": {
                "before": {"chosen_longer": 0.723, "chosen_shorter": 0.502},
                "after": {"chosen_longer": 0.665, "chosen_shorter": 0.611},
            },
            "best_fixed": {
                "before": {"chosen_longer": 0.703, "chosen_shorter": 0.462},
                "after": {"chosen_longer": 0.605, "chosen_shorter": 0.551},
            },
        },
    }


def curve(rng):
    count = np.array([310, 260, 190, 140, 90, 50, 22, 9, 3, 0])
    stated = np.arange(0.525, 1, 0.05)
    right = np.where(count > 0, stated + rng.normal(size=10) * 0.03, np.nan)
    empty = np.where(count > 0, stated, np.nan)
    return {"count": count.tolist(), "confidence": empty.tolist(), "accuracy": right.tolist()}


def example_metrics(num_objectives=6, num_sources=4, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"raters{i // 5}-{ATTRIBUTES[i % 5]}" for i in range(num_objectives)]
    sources = [f"source_{i}" for i in range(num_sources)]
    weights = rng.dirichlet(np.full(num_objectives, 0.2), num_sources)
    return {
        "objectives": objective_section(rng, names),
        "left_out": {"raters9-rare": "3 ratings in train; it takes 8"},
        "debias": debias_section(rng, names),
        "pairs": pair_section(rng, sources),
        "reliability": {s: curve(rng) for s in ("gate", "best_fixed", "linear_bt", "mlp")},
        "comparisons": {"gate - best_fixed": {"value": 0.0641, "ci95": [0.0512, 0.0793]}},
        "gate": {
            "scale": 3.1,
            "weights_by_domain": {
                s: dict(zip(names, row.tolist(), strict=True))
                for s, row in zip(sources, weights, strict=True)
            },
        },
        "leave_one_out": {
            s: {"n": 900.0, "gate": 0.5412, "best_fixed": 0.5523, "linear_bt": 0.5634}
            for s in sources
        },
        "planted": {
            "oracle": 0.7912,
            "gate": 0.7634,
            "best_fixed": 0.6945,
            "recovered": 0.7125,
            "weight_correlation": 0.8786,
        },
    }

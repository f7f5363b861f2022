"""Where search.py looks for a setting: from, to, and whether on a logarithmic scale; compare.py changes some."""

SPACE = {
    "lr": (3e-4, 3e-2, True),
    "l1": (1e-7, 1e-3, True),
    "l2": (1e-6, 1e-1, True),
    "weight_decay": (1e-4, 10, True),
    "dropout": (0.02, 0.6, False),
    "noise": (0.05, 1, False),
    "rotate": (3, 25, False),
    "zoom": (0.03, 0.3, False),
    "shift": (0.1, 3, False),
    "shear": (0.03, 0.3, False),
    "elastic": (5, 60, False),
}

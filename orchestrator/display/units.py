"""Numbers formatted for people."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """Return three digits and a decimal prefix, as in `1.23M`; whole numbers below 1000 are not changed."""
    # From 999.5 on a value would round to 1000 of its own prefix.
    for unit, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * unit:
            scaled = value / unit
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{prefix}"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Return a size as in `1.23 MB`, decimal, as disks and networks are sold."""
    text = count(num_bytes)
    return f"{text[:-1]} {text[-1]}B" if text[-1] in "TGMk" else f"{text} B"


def duration(seconds: float) -> str:
    """Return a duration as in `4.2 s`, `1 min 20 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{1000 * seconds:.2g} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def age(seconds: float) -> str:
    """Return an age in the largest whole unit, rounded down, as in `42 s`, `5 min`, `3 h`, `12 d`."""
    for unit_seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_seconds:
            return f"{int(seconds // unit_seconds)} {unit}"
    return f"{max(int(seconds), 0)} s"


def percent(fraction: float) -> str:
    """Return a percentage as in `12.3 %`."""
    return f"{100 * fraction:.1f} %"

"""The error message for an option outside its range."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse an option outside its range: "NAME must be ALLOWED, got VALUE".

    Raises:
        ValueError: If the condition does not hold.
    """
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")

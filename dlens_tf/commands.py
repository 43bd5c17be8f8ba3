"""Commands as a user would type them, for messages that say what to run."""

import shlex


def command_line(tool: str, **values: object) -> str:
    """The command line of tools/<tool>.py with these flags."""
    arguments = " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in values.items())
    return f"python tools/{tool}.py {arguments}".strip()

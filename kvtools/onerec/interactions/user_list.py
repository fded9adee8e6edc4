"""The users that `--users` names: words with commas between, or a file with one name a line."""

import os
from collections.abc import Container

from kvtools.artifact import source_name
from kvtools.artifact.delimited import read_lines
from kvtools.artifact.files import open_source
from kvtools.errors import Missing, Usage


def read_user_list(users: str, known: Container[str]) -> list[str]:
    """Distinct names in order. users: names with commas between, a path, or `-`. known: the users that there are.

    Raises Usage where there is no name, Missing for one word that looks like a path and is neither a file nor a user.
    """
    # unlike Path.exists, os.path's takes a long list of names for what it is
    if users == "-" or (os.path.exists(users) and not os.path.isdir(users)):
        names = read_lines(open_source(users), source_name(users))
    else:
        names = users.split(",")
        if len(names) == 1 and users not in known and (os.sep in users or os.path.splitext(users)[1]):
            raise Missing(f"--users {users}: there is no such file and no such user. Check the name.")
    names = [name for name in dict.fromkeys(name.strip() for name in names) if name]
    if not names:
        raise Usage(f"--users {users!r} holds no name. Give names with commas between, or a file with one a line.")
    return names

"""Users of a Redis that may do little."""

from __future__ import annotations

ACL = "~closecodes:* +@hash +@sortedset +del +expire +time +info +eval +evalsha"

ACL_OF_A_CLUSTER = "+cluster|slots +command"


def user_with(server, acl):
    """The URL of a user who may do that and nothing else."""
    server.command("ACL", "SETUSER", "ann", "reset", "on", ">s3cret", *acl.split())
    return f"unix://ann:s3cret@{server.socket}"

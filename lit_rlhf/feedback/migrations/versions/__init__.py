"""One file a step; `revision` and `down_revision` say their order."""

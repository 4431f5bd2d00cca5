"""The only place that knows the names and layouts of other projects."""

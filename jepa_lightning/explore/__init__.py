"""A page that shows attention maps, features and predictions of hidden patches."""

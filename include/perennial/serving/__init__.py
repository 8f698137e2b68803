"""Online scoring: the features and the champion's predictions of single entities, asked at any moment."""

"""What answers without reading the questions' cases well: the rows that a model has to beat."""

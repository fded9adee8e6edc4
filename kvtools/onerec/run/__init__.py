"""Training set-up of OneRec: data set, objective, recipe, checkpoint."""

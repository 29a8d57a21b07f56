"""Fine-tuning on a folder of labelled photos: survey, split, recipe, training, and an honest comparison."""

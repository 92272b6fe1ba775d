"""Multiple-choice questions: tokens, files, batches, measures."""

"""What one does with a trained model, a command each."""

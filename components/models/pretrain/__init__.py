"""How the embedded backbone is made: images from nothing, a teacher's hidden states, one resumable run."""

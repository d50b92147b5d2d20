"""What the stages agree on: errors, λ grid, points, table schemas, locations, the run directory. Everybody may import it."""

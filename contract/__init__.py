"""All stages agree on this folder: errors, λ grid, points, table schemas, locations, run directory. All may import it."""

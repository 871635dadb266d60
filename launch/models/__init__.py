"""Models outside of runs: adopted, embedding galleries, upgraded, evaluated, compared."""

"""What people read of an evaluation: tables, plots and sheets of cases."""

"""Studies: many trainings on simulated cohorts, one table (`osteojax study`)."""

"""Studies: many trainings on simulated cohorts, compared in one table (`osteojax study`)."""

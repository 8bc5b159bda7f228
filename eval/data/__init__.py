"""Sources of samples, one a file: what is particular to a data set stays here."""

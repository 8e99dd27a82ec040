"""A second kind of data, outside the packages: small pictures, one class, one number.

It proves that a new kind needs only new files. The kind's name is "tests.pictures", the
method's "tests.pictures.objective".
"""

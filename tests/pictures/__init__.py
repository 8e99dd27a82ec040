"""A second kind of data, outside the packages: small pictures, one class, one number.

It is here to prove that a kind is new files alone. The kind's name is "tests.pictures", the
method's "tests.pictures.objective".
"""

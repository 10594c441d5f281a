"""SAEs in the files of others: read, written, and told apart.

Files from outside are data: nothing in them is executed, and no size that they
claim is allocated before it is known to be there.
"""

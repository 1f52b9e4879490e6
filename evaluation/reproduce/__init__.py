"""Tables of the papers: what they need, in which order it is made, and published beside measured numbers.

`python -m evaluation reproduce TABLE`; a table is a YAML in `tables/`, or one of yours.
"""

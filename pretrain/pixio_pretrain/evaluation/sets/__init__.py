"""Labelled data sets in the layouts that their makers publish, checked before anything is trained on them."""

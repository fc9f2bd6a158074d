"""Probes on simulated frames with exact answers: depth, parts of the scene, where things are, where the camera is."""

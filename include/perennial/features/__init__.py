"""Features and labels of an interval, computed from what was known at the time.

Begin with :mod:`perennial.features.point_in_time`, then :mod:`perennial.features.publish`.
"""

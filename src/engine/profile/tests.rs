//! Profiles against plain arithmetic over all values in memory.

//! xbus-file

//! xbus-transform

//! xbus-config

//! xbus-admin

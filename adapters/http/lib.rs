//! xbus-http

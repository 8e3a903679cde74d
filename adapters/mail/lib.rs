//! xbus-mail

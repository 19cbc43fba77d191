//! Errors in log lines: the whole chain of causes, once, at the boundary.

/// An error and its causes in one line, separated by colons.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    #[derive(Debug, thiserror::Error)]
    #[error("the store is away")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_in_order() {
        let error = Outer(std::io::Error::other("connection refused"));
        assert_eq!(
            super::error_chain(&error),
            "the store is away: connection refused"
        );
    }
}

//! Byte ranges of RFC 9110: one range is served, several or nonsense are ignored as the RFC allows.

/// What part of a body is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    Whole,
    /// First and last byte, both inside.
    Part(u64, u64),
    /// No byte of it is inside.
    Unsatisfiable,
}

/// Reads a `Range` header for a body of `length` bytes.
pub(super) fn parse(header: Option<&str>, length: u64) -> Range {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else {
        return Range::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-').filter(|_| !spec.contains(',')) else {
        return Range::Whole;
    };
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => match suffix.min(length) {
            0 => Range::Unsatisfiable,
            n => Range::Part(length - n, length - 1),
        },
        (Some(first), None) if last.is_empty() => within(first, u64::MAX, length),
        (Some(first), Some(last)) if first <= last => within(first, last, length),
        _ => Range::Whole,
    }
}

fn within(first: u64, last: u64, length: u64) -> Range {
    if first >= length {
        return Range::Unsatisfiable;
    }
    Range::Part(first, last.min(length - 1))
}

/// Whether an `If-None-Match` or `If-Range` header names this entity tag.
pub(super) fn names(header: Option<&str>, etag: &str) -> bool {
    header.is_some_and(|h| {
        let mut tags = h.split(',').map(|t| t.trim().trim_start_matches("W/"));
        h.trim() == "*" || tags.any(|t| t == etag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_body() {
        for (header, range) in [
            ("bytes=0-9", Range::Part(0, 9)),
            ("bytes=90-", Range::Part(90, 99)),
            ("bytes=90-500", Range::Part(90, 99)),
            ("bytes=-5", Range::Part(95, 99)),
            ("bytes=-500", Range::Part(0, 99)),
            ("bytes=100-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", Range::Unsatisfiable),
            ("bytes=9-0", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=-", Range::Whole),
            ("items=0-1", Range::Whole),
            ("bytes=--5", Range::Whole),
        ] {
            assert_eq!(parse(Some(header), 100), range, "{header}");
        }
        assert_eq!(parse(Some("bytes=0-"), 0), Range::Unsatisfiable);
        assert_eq!(parse(None, 100), Range::Whole);
    }

    #[test]
    fn tags_are_matched() {
        assert!(names(Some("\"a\", W/\"b\""), "\"b\""));
        assert!(names(Some("*"), "\"b\""));
        assert!(!names(Some("\"a\""), "\"b\"") && !names(None, "\"b\""));
    }
}

//! Percent-encoding: query strings, form bodies and path segments.

/// `a=b&c=d` as pairs of raw bytes; `+` is a space.
pub(super) fn pairs(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    text.split(|b| *b == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let split = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            let value = pair.get(split + 1..).unwrap_or_default();
            (decode(&pair[..split], true), decode(value, true))
        })
        .collect()
}

/// Undoes percent-encoding; a `%` without two hex digits stays as it is.
pub(super) fn decode(text: &[u8], plus_is_space: bool) -> Vec<u8> {
    let digit = |i: usize| text.get(i).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        match (text[i], digit(i + 1), digit(i + 2)) {
            (b'%', Some(hi), Some(lo)) => {
                out.push((hi * 16 + lo) as u8);
                i += 2;
            }
            (b'+', ..) if plus_is_space => out.push(b' '),
            (b, ..) => out.push(b),
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_taken_apart() {
        let found = pairs(b"text=a+b%20%E4%BD%A0&&flag&x=%zz%4&y==");
        let text: Vec<(String, String)> = found
            .into_iter()
            .map(|(k, v)| (String::from_utf8(k).unwrap(), String::from_utf8(v).unwrap()))
            .collect();
        let expected = [("text", "a b 你"), ("flag", ""), ("x", "%zz%4"), ("y", "=")];
        assert!(
            text.iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .eq(expected)
        );
        assert_eq!(decode(b"a+%2F", false), b"a+/");
    }
}

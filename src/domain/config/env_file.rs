//! Files of variables in the form of systemd's EnvironmentFile (systemd.exec(5)): `NAME=value` lines,
//! `#` and `;` comments, single and double quotes, a backslash at the end of a line goes on.

/// Reads the variables, in their order.
///
/// # Errors
/// Names the line.
pub fn env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let start = line.trim_start();
        if start.is_empty() || start.starts_with(['#', ';']) {
            continue;
        }
        let fault = |what: &str| format!("line {}: {what}", number + 1);
        let (name, value) = start.split_once('=').ok_or_else(|| fault("expected NAME=value"))?;
        let name = name.trim().strip_prefix("export ").unwrap_or(name.trim()).trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(fault(&format!("{name:?} is no name of a variable")));
        }
        let mut value = value.to_owned();
        loop {
            match unquote(&value) {
                Some(plain) => {
                    variables.push((name.to_owned(), plain));
                    break;
                }
                // A quote or a backslash is open: the value goes on in the next line.
                None => {
                    let (_, more) = lines.next().ok_or_else(|| fault("the value does not end"))?;
                    value.push('\n');
                    value.push_str(more);
                }
            }
        }
    }
    Ok(variables)
}

/// The value without its quotes; `None` while one is open.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut quote = None;
    let mut kept = 0;
    let mut chars = text.trim_start().chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (Some('\''), _) => value.push(c),
            (_, '\\') => match chars.next()? {
                '\n' => {}
                next if quote == Some('"') && !matches!(next, '"' | '\\' | '$' | '`') => value.extend(['\\', next]),
                next => value.push(next),
            },
            (None, c) if c.is_whitespace() => {
                value.push(c);
                continue;
            }
            _ => value.push(c),
        }
        kept = value.len();
    }
    value.truncate(kept);
    quote.is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        let text = "# no\n; no\nA=1\nB = two words  \nC='x # \"y\"'\nD=\"a\\\"b\\n\"\nE=\nF=one\\\ntwo\nexport G=7\nH=\"a\nb\"\n";
        let read = env_file(text).unwrap();
        let pairs: Vec<_> = read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let want = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "x # \"y\""),
            ("D", "a\"b\\n"),
            ("E", ""),
            ("F", "onetwo"),
            ("G", "7"),
            ("H", "a\nb"),
        ];
        assert_eq!(pairs, want);
    }

    #[test]
    fn faults_name_their_line() {
        assert!(env_file("A=1\nnonsense\n").unwrap_err().starts_with("line 2"));
        assert!(env_file("1A=x").unwrap_err().contains("no name"));
        assert!(env_file("A='x").unwrap_err().contains("does not end"));
    }
}

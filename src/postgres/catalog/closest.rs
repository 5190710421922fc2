//! The name that was probably meant.

/// The candidate that differs least from `name`, if it differs by few enough letters to be a slip.
pub(super) fn closest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let allowed = wanted.chars().count().div_ceil(4).max(1);
    candidates
        .map(|candidate| (distance(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (other, above) in b.iter().zip(row.windows(2)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((above[0] + usize::from(letter != *other)).min(above[1] + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_letters_that_differ() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }

    #[test]
    fn finds_slips_and_nothing_else() {
        let names = ["users", "orders", "TaskRun"];
        assert_eq!(closest("user", names.into_iter()), Some("users"));
        assert_eq!(closest("taskrun", names.into_iter()), Some("TaskRun"));
        assert_eq!(closest("order_items", names.into_iter()), None);
    }
}

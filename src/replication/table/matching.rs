//! Matches two lists whose order is the same, where a member of one may be one of several of the other.

/// What can be had behind a position in both lists: how many members are matched at most, in how many ways (2
/// for more), and by which choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Best {
    matched: usize,
    ways: u8,
    choice: Option<usize>,
}

/// For each member of the first list its match in the second, whose length is `length`, so that as many as
/// can be are matched, in the order of both; and whether another choice would match as many. `candidates` are
/// what each may be, in ascending order.
pub(in crate::replication) fn best(candidates: &[Vec<usize>], length: usize) -> (Vec<Option<usize>>, bool) {
    if let Some(only) = certain(candidates) {
        return (only, false);
    }
    let none = vec![Best { matched: 0, ways: 1, choice: None }; length + 1];
    let mut rows = vec![none];
    for of_member in candidates.iter().rev() {
        let Some(behind) = rows.last() else { break };
        let row = (0..=length).map(|from| choose(of_member, behind, from)).collect();
        rows.push(row);
    }
    let mut chosen = Vec::with_capacity(candidates.len());
    let mut from = 0;
    let at = |row: &Vec<Best>, from: usize| row.get(from).copied().unwrap_or_default();
    let ambiguous = rows.last().is_some_and(|row| at(row, 0).ways > 1);
    for row in rows.iter().skip(1).rev() {
        let choice = at(row, from).choice;
        chosen.push(choice);
        from = choice.map_or(from, |choice| choice + 1);
    }
    (chosen, ambiguous)
}

/// The only match there is, where each member has at most one and these are in order.
fn certain(candidates: &[Vec<usize>]) -> Option<Vec<Option<usize>>> {
    let single = |of_member: &Vec<usize>| (of_member.len() <= 1).then(|| of_member.first().copied());
    let chosen: Vec<_> = candidates.iter().map(single).collect::<Option<_>>()?;
    chosen.iter().flatten().is_sorted_by(|one, next| one < next).then_some(chosen)
}

fn choose(of_member: &[usize], behind: &[Best], from: usize) -> Best {
    let left_out = Best { choice: None, ..behind.get(from).copied().unwrap_or_default() };
    let taken = of_member.iter().filter(|choice| **choice >= from).map(|choice| {
        let rest = behind.get(choice + 1).copied().unwrap_or_default();
        Best { matched: rest.matched + 1, ways: rest.ways, choice: Some(*choice) }
    });
    taken.fold(left_out, |best, other| match best.matched.cmp(&other.matched) {
        std::cmp::Ordering::Greater => best,
        std::cmp::Ordering::Less => other,
        std::cmp::Ordering::Equal => Best {
            ways: best.ways.saturating_add(other.ways).min(2),
            choice: best.choice.or(other.choice),
            ..best
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_are_matched_in_order() {
        assert_eq!(best(&[vec![0], vec![1]], 2), (vec![Some(0), Some(1)], false));
        assert_eq!(best(&[vec![0], vec![], vec![1]], 2), (vec![Some(0), None, Some(1)], false));
        // Two that swapped their names, before and after.
        assert_eq!(best(&[vec![0, 1], vec![0, 1]], 2), (vec![Some(0), Some(1)], false));
        // The only one of them that is left.
        assert!(best(&[vec![0], vec![1, 2]], 3).1);
        // Out of order: one is left out, and it may be either.
        assert!(best(&[vec![1], vec![0]], 2).1);
        assert_eq!(best(&[vec![1], vec![0], vec![2]], 3).0.iter().flatten().count(), 2);
        assert_eq!(best(&[], 3), (vec![], false));
        assert_eq!(best(&[vec![], vec![]], 0), (vec![None, None], false));
    }
}

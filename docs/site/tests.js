// Folds the names of tests behind a promise, as in "What velo promises", into one word.

function isTest(node) {
  return node?.nodeName === "CODE" && /^(test_|tests\/)\S+::\w+$/.test(node.textContent.trim());
}

for (const first of document.querySelectorAll(".md-content code")) {
  if (!isTest(first) || first.closest("details")) continue;
  // A run of names has nothing but spaces between them.
  const run = [first];
  for (let next = first.nextSibling; next; next = next.nextSibling) {
    if (isTest(next)) run.push(next);
    else if (next.nodeType !== Node.TEXT_NODE || next.textContent.trim()) break;
  }
  const details = document.createElement("details");
  details.className = "promise-tests";
  const summary = document.createElement("summary");
  summary.textContent = run.length === 1 ? "1 test" : `${run.length} tests`;
  first.before(details);
  details.append(summary, ...run);
}

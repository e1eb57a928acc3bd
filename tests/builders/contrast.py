"""What stands out least on a page, computed in the page."""

LOWEST_CONTRAST = """() => {
  const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
  const seen = {}
  const light = color => seen[color] ??= (() => {
    context.clearRect(0, 0, 1, 1)
    context.fillStyle = color
    context.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data
    const linear = [r, g, b].map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    return [0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2], a]
  })()
  let lowest = [21, '']
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), own = walk.currentNode.parentElement
    if (!text || !own.getClientRects().length) continue
    const style = getComputedStyle(own)
    let behind = own
    while (behind && !light(getComputedStyle(behind).backgroundColor)[1]) {
      behind = behind.parentElement
    }
    const a = light(own.closest('svg') ? style.fill : style.color)[0]
    const b = light(getComputedStyle(behind).backgroundColor)[0]
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (ratio < lowest[0]) lowest = [ratio, text]
  }
  return lowest
}"""
"""The lowest contrast ratio of a text with what is behind it (WCAG 2.2), and that text."""

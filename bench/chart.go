package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// series is a line of a chart.
type series struct {
	name   string
	points [][2]float64 // x, y; sorted by x
}

// barChart draws groups of bars, each group with a title, on a scale of its own.
func barChart(title, unit string, names []string, values []float64) string {
	const width, row, left = 720, 26, 250
	var b strings.Builder
	height := 50 + row*len(names)
	svgHead(&b, title, width, height)
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	for i, name := range names {
		y := 40 + i*row
		long := values[i] / max(most, 1) * (width - left - 110)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+15, html.EscapeString(name))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+2, long, row-8, barColour(name))
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s%s</text>`+"\n", left+long+6, y+15, countText(int(values[i]+0.5)), html.EscapeString(unit))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func barColour(name string) string {
	if strings.HasPrefix(name, "aspstate") {
		return "#1f77b4"
	}
	return "#9a9a9a"
}

var colours = []string{"#1f77b4", "#d62728", "#2ca02c", "#9467bd"}

// lineChart draws lines over a logarithmic x axis; the y axis begins at 0.
func lineChart(title, xName, yName string, lines []series, xText func(float64) string) string {
	const width, height, left, right, top, bottom = 720, 320, 80, 160, 40, 50
	var b strings.Builder
	svgHead(&b, title, width, height)
	loX, hiX, hiY := math.Inf(1), math.Inf(-1), 0.0
	xs := map[float64]bool{}
	for _, l := range lines {
		for _, p := range l.points {
			loX, hiX, hiY = min(loX, p[0]), max(hiX, p[0]), max(hiY, p[1])
			xs[p[0]] = true
		}
	}
	if len(xs) == 0 || hiY == 0 {
		b.WriteString("</svg>\n")
		return b.String()
	}
	if hiX == loX {
		hiX = 2 * loX
	}
	x := func(v float64) float64 {
		return left + (math.Log(v)-math.Log(loX))/(math.Log(hiX)-math.Log(loX))*(width-left-right)
	}
	y := func(v float64) float64 { return height - bottom - v/hiY*(height-top-bottom) }
	for i := range 5 {
		v := hiY * float64(i) / 4
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, width-right, y(v), y(v), left-6, y(v)+4, countText(int(v+0.5)))
	}
	for v := range xs {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(v), height-bottom+18, xText(v))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text><text x="14" y="%d" transform="rotate(-90 14 %d)" text-anchor="middle">%s</text>`+"\n",
		(left+width-right)/2, height-10, html.EscapeString(xName), (height-bottom+top)/2, (height-bottom+top)/2, html.EscapeString(yName))
	for i, l := range lines {
		colour := colours[i%len(colours)]
		var points []string
		for _, p := range l.points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(p[0]), y(p[1])))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p[0]), y(p[1]), colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(points, " "), colour)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", width-right+12, top+14+18*i, colour, html.EscapeString(l.name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func svgHead(b *strings.Builder, title string, width, height int) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
<text x="10" y="22" font-size="15">%s</text>
`, width, height, width, height, html.EscapeString(title))
}

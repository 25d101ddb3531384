DROP TABLE arrivals;
DROP TABLE moves;

import{a}from"./chunk-FOX6CVLF.js";import"./chunk-YCPHYMNW.js";import"./chunk-DGOMQZYR.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
